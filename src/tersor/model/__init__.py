"""From one tensor to a module: select, attach, restore."""
