"""What a stranger may have written: looked at once, when it is opened, before anything is built of it."""
