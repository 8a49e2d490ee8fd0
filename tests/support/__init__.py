"""What several tests share: files, cases, stand-ins."""
