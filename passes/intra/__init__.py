"""The intra-operator program: strategies -> graph -> smaller graph -> MILP -> a sharding per value."""
