"""Site: describing a cluster (`cluster init`) and examining it (`doctor`)."""
