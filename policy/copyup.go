package policy

import (
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/docker/api/types/volume"
)

// noCopy is the mode of a bind that keeps the Engine from filling a volume.
const noCopy = "nocopy"

// FillOnly keeps the Engine from copying the image's content into named volumes, but
// for those that are fresh. It copies as root of the host and follows the links that it
// finds in the volume: nobody may have been able to put any there.
// Anonymous ones are filled where they are the Engine's own directories.
func FillOnly(req *container.CreateRequest, fresh map[string]bool) {
	hc := req.HostConfig
	if hc == nil {
		return
	}
	binds := slices.Clone(hc.Binds)
	for i, bind := range binds {
		if name, ok := boundVolume(bind); ok && !fresh[name] {
			binds[i] = unfilled(bind)
		}
	}
	hc.Binds = binds
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		if m.Type != mount.TypeVolume || fresh[m.Source] || m.Source == "" && engineFills(hc, m.VolumeOptions) {
			continue
		}
		var options mount.VolumeOptions
		if m.VolumeOptions != nil {
			options = *m.VolumeOptions
		}
		options.NoCopy = true
		m.VolumeOptions = &options
	}
}

// engineFills reports whether a new volume is a directory of the Engine's own.
func engineFills(hc *container.HostConfig, o *mount.VolumeOptions) bool {
	driver := &mount.Driver{Name: hc.VolumeDriver}
	if o != nil && o.DriverConfig != nil {
		driver = o.DriverConfig
	}
	return localDriver(hc.VolumeDriver) && localDriver(driver.Name) && len(driver.Options) == 0
}

// OwnedByEngine reports whether a volume that is to be made is a directory of the
// Engine's own, which nobody else reaches.
func OwnedByEngine(req *volume.CreateOptions) bool {
	return req.ClusterVolumeSpec == nil && localDriver(req.Driver) && len(req.DriverOpts) == 0
}

// boundVolume returns the volume that a bind names: name:/path[:mode]. A source that
// begins with a slash is a path of the host, and one part alone an anonymous volume's.
func boundVolume(bind string) (name string, ok bool) {
	source, _, ok := strings.Cut(bind, ":")
	return source, ok && source != "" && !strings.HasPrefix(source, "/")
}

// unfilled is a bind of a named volume with the mode nocopy.
func unfilled(bind string) string {
	_, rest, _ := strings.Cut(bind, ":")
	_, mode, _ := strings.Cut(rest, ":")
	switch {
	case slices.Contains(strings.Split(mode, ","), noCopy):
		return bind
	case mode != "":
		return bind + "," + noCopy
	}
	return strings.TrimSuffix(bind, ":") + ":" + noCopy
}

// AnonymousName reports whether a volume's name may be one that the Engine chose: 64
// hexadecimal digits (volume/service, stringid.GenerateRandomID).
func AnonymousName(name string) bool {
	return len(name) == 64 && strings.Trim(name, "0123456789abcdef") == ""
}

// MarkVolume adds to labels what tells, in the Engine's answer, that this request made
// the volume, and not one before it.
func MarkVolume(labels map[string]string, mark string) map[string]string {
	labels[LabelVolumeMark] = mark
	return labels
}
