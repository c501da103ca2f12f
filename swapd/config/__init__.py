"""The YAML file: what it may say (`schema`), how it is read (`load`), how changes are noticed (`watch`)."""
