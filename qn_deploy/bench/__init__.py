"""How fast the files of a build are on this machine, beside the same model in dense int8 and in float."""
