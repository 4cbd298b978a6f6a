"""The forms by which a person changes networks."""
