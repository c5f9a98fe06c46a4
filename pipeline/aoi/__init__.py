"""Areas of interest: geometry in degrees, UTM zones and periods."""
