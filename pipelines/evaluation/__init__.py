"""Answers by every arm and decoding method, journalled, scored and compared."""
