"""A Gradio app for a checkpoint: app.py, which a Space holds as it is, and what writes it."""
