"""`action=dashboard`: a W&B workspace of a study and a W&B report with its verdict."""
