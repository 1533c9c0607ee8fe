"""An online shop as a choreography: four services, no conductor. README.md beside this file draws it."""
