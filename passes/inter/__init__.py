"""The inter-operator program: layers, stage cost tables, the stage dynamic program, the simulator."""
