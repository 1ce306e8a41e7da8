"""Code shared by all projects: leaf functions and the training loop of `core.run.Run`. It imports no project."""
