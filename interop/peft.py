class PEFTExport:
    name, is_directory = "peft", True
