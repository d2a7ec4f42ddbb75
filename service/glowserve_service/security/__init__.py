"""Security: certificates, tokens, and who may call what."""
