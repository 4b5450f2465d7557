"""What everything stands on: storage, media, the corpus format, configuration and tracking."""
