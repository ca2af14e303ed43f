"""Views: what a person sees of a run, as text and on a live screen."""
