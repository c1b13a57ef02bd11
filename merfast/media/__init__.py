"""From any media to timed arrays: decoding, audio, faces, windows."""
