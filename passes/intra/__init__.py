"""The intra-operator program: shardings of all values of a stage by mixed-integer programming (Alpa, OSDI'22, §4)."""
