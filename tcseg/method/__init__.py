"""The method of the paper: Equation 1, transforms, losses, network and variants."""
