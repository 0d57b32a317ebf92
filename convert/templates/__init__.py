"""Package data: see convert/README.md."""
