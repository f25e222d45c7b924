"""A Gradio app for a checkpoint: app.py, which a Space contains unchanged, and files.py, which writes the Space."""
