"""`quad ablate`: what each choice of a build costs."""
