"""Single operators in the form that a target has."""
