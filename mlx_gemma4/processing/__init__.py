"""Messages, pictures, sounds, and clips into `ModelInputs`, and answers back into parts."""
