"""What the five projects share: leaf functions and one Run object. It imports no project."""
