package policy

import (
	"fmt"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
)

// localDriver reports whether a volume driver is the Engine's own: "" or local.
func localDriver(name string) bool { return name == "" || name == "local" }

// NewVolume decides whether a volume may be created. Options of the local
// driver are mount options: o=bind,device=/etc reads the host.
func NewVolume(p *Profile, req *volume.CreateOptions) Verdict {
	if p.volumeOptions() {
		return allow("new-volume")
	}
	switch {
	case req.ClusterVolumeSpec != nil:
		return refuseNamed("volume-driver", "Permission denied: cluster volumes are for admins only on this server.")
	case !localDriver(req.Driver):
		return refuseNamed("volume-driver", fmt.Sprintf("Permission denied: the volume driver %q is not allowed here. Leave --driver out.", req.Driver))
	case len(req.DriverOpts) > 0:
		return refuseNamed("volume-options", "Permission denied: options of the volume driver (--opt) are not allowed here, since they can mount any path of the host. Leave them out.")
	}
	return allow("new-volume")
}

// TakenVolume adds to a refusal of another user's volume what to do about it, and in
// which field of the request its name stands.
func TakenVolume(v Verdict, field string) Verdict {
	if field != "" {
		v.Reason += " (" + field + ")"
	}
	v.Reason += ". Choose another name; with compose, another project name: -p NAME, or COMPOSE_PROJECT_NAME."
	return v
}

// A VolumeReference is a place in a create request that names a volume.
type VolumeReference struct {
	// Field is the place as users know it, for messages.
	Field string
	// Name is the volume's name.
	Name string
}

// VolumeReferences lists the named volumes that a container is to mount, each
// once, and gives the anonymous ones that the request asks for the owner's
// labels.
func VolumeReferences(req *container.CreateRequest) []VolumeReference {
	hc := req.HostConfig
	if hc == nil {
		return nil
	}
	var refs []VolumeReference
	seen := make(map[string]bool)
	add := func(field, name string) {
		if !seen[name] {
			seen[name] = true
			refs = append(refs, VolumeReference{field, name})
		}
	}
	for _, bind := range hc.Binds {
		if name, ok := boundVolume(bind); ok {
			add("-v "+bind, name)
		}
	}
	for _, m := range hc.Mounts {
		if m.Type == mount.TypeVolume && m.Source != "" {
			add("--mount source="+m.Source, m.Source)
		}
	}
	return refs
}

// VolumeDrivers decides about the drivers of the volumes that a container is to
// mount.
func VolumeDrivers(p *Profile, req *container.CreateRequest) Verdict {
	hc := req.HostConfig
	if hc == nil || p.volumeOptions() {
		return allow("volume-driver")
	}
	if !localDriver(hc.VolumeDriver) {
		return refuseNamed("volume-driver", fmt.Sprintf("Permission denied: the volume driver %q is not allowed here. Leave --volume-driver out.", hc.VolumeDriver))
	}
	for _, m := range hc.Mounts {
		if m.Type == mount.TypeCluster {
			return refuseNamed("volume-driver", "Permission denied: cluster volumes are for admins only on this server.")
		}
		if m.VolumeOptions == nil || m.VolumeOptions.DriverConfig == nil {
			continue
		}
		v := NewVolume(p, &volume.CreateOptions{Driver: m.VolumeOptions.DriverConfig.Name, DriverOpts: m.VolumeOptions.DriverConfig.Options})
		if !v.Allowed() {
			return v
		}
	}
	return allow("volume-driver")
}

// LabelVolumes gives the owner's labels to the volumes that the Engine will make
// for a container: those of the request, and the anonymous ones that request and
// image declare, whose paths are imagePaths; at the paths that are inherited from
// other containers the Engine makes none. Labels are only possible on mounts,
// so declared paths become mounts without a source, which the Engine removes
// with the container as it does anonymous volumes.
func LabelVolumes(req *container.CreateRequest, s *Subject, imagePaths, inherited []string) {
	hc := req.HostConfig
	taken := make(map[string]bool)
	for _, target := range inherited {
		taken[cleanTarget(target)] = true
	}
	for _, bind := range hc.Binds {
		if _, rest, ok := strings.Cut(bind, ":"); ok {
			target, _, _ := strings.Cut(rest, ":")
			taken[cleanTarget(target)] = true
		}
	}
	for target := range hc.Tmpfs {
		taken[cleanTarget(target)] = true
	}
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		taken[cleanTarget(m.Target)] = true
		if m.Type != mount.TypeVolume {
			continue
		}
		options := mount.VolumeOptions{}
		if m.VolumeOptions != nil {
			options = *m.VolumeOptions
		}
		options.Labels = OwnLabels(options.Labels, s)
		m.VolumeOptions = &options
	}
	declare := func(target string) {
		if t := cleanTarget(target); !taken[t] {
			taken[t] = true
			hc.Mounts = append(hc.Mounts, mount.Mount{
				Type: mount.TypeVolume, Target: target,
				VolumeOptions: &mount.VolumeOptions{Labels: OwnLabels(nil, s)},
			})
		}
	}
	var binds []string
	for _, bind := range hc.Binds {
		if !strings.Contains(bind, ":") {
			declare(bind)
			continue
		}
		binds = append(binds, bind)
	}
	hc.Binds = binds
	for _, target := range sortedKeys(req.Volumes) {
		declare(target)
	}
	for _, target := range imagePaths {
		declare(target)
	}
}
