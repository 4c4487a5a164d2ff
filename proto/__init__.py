"""The wire protocol: messages and their generated code, the chunk codec, errors, transport and security."""
