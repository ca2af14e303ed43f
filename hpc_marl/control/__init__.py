"""Workers that are driven by RPC, and the controller that drives them. No torch."""
