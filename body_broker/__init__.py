"""The ground floors of Body Broker: errors, settings, telemetry, the words of a call, stores, durable work, audit, lore."""
