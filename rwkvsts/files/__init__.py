"""Weight files and how to get them: formats, names of tensors, the hub, whole files on disk.

Nothing in a file is executed; what is read is checked before it is believed.
"""
