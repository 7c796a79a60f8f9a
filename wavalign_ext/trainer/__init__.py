"""The method inside verl's trainer."""
