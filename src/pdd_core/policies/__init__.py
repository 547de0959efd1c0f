"""Built-in policies: ordinary hook implementations, asked after every third party's."""
