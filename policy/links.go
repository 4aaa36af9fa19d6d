package policy

import "fmt"

// HostLinks decides about a request in which links of a container could lead the Engine
// onto the host; open says why the daemon cannot prevent it, and is "" where it does.
func HostLinks(p *Profile, what, open, instead string, sw Switch) Verdict {
	const rule = "host-links"
	switch {
	case p.OwnershipOnly:
		return allow("open-profile")
	case open == "":
		return allow(rule)
	case sw == SwitchAllow:
		return failOpen(rule, "links could lead the Engine out of the container: "+open)
	}
	return refuse(rule, fmt.Sprintf("Permission denied: %s could lead the Engine out of the container by links (rule host-links, profile %s): %s. %s", what, p.Name, open, instead))
}
