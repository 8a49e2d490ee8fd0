"""Reading and writing media files; the only room that knows FFmpeg."""
