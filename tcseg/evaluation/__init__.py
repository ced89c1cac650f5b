"""What is measured on masks, how good a network is, and pictures of both."""
