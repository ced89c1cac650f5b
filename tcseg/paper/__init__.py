"""The tables of the paper: a grid of trainings, and the published figures beside ours."""
