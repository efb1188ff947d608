"""What a question can be asked of later: read-outs of the last blocks, linear in the text."""
