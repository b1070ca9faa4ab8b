"""What a sandbox has of files, apart from its processes; of the room ``sandbox``."""
