package policy

import (
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// UpdateVerdict decides about a change of a container's settings.
func UpdateVerdict(p *Profile, u *container.UpdateConfig) Verdict {
	req := &container.CreateRequest{HostConfig: &container.HostConfig{Resources: u.Resources, RestartPolicy: u.RestartPolicy}}
	return HostVerdict(p, req)
}

// ExecVerdict decides about a process that is started in a container.
func ExecVerdict(p *Profile, e *container.ExecOptions) Verdict {
	if e.Privileged && !p.Privileged && !p.OwnershipOnly {
		return refuseByRule(p, "refuse-privileged", "docker exec --privileged; Leave it out.")
	}
	return allow("exec")
}

// Harden sets what a profile sets on every container.
func Harden(p *Profile, req *container.CreateRequest) {
	if p.OwnershipOnly {
		return
	}
	hc := req.HostConfig
	if !allows(p.SecurityOpt, "systempaths=unconfined") {
		// Nothing less than the Engine's own was let through; its own may be more.
		hc.MaskedPaths, hc.ReadonlyPaths = nil, nil
	}
	for _, c := range p.CapDrop {
		if !slices.ContainsFunc(hc.CapDrop, func(have string) bool { return capability(have) == c || capability(have) == "ALL" }) {
			hc.CapDrop = append(hc.CapDrop, c)
		}
	}
	if p.NoNewPrivileges && !slices.ContainsFunc(hc.SecurityOpt, func(opt string) bool { return strings.HasPrefix(opt, "no-new-privileges") }) {
		hc.SecurityOpt = append(hc.SecurityOpt, "no-new-privileges")
	}
}
