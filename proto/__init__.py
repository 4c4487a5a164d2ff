"""What is said: messages, their generated code, the chunk codec, errors and transport settings."""
