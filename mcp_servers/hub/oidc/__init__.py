"""People of an OpenID Connect issuer: their bearer tokens, their login to the hub's pages, and how clients find the issuer."""
