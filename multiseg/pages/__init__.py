"""Pages of HTML that need no other file: what reports on trainings and on federations share."""
