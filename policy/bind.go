package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
)

// LabelBindMap is the label by which a container says whose the files of its host
// binds are inside: auto, user, root or none.
const LabelBindMap = "ds01.bind.map"

// A BindRoot is a path of the host that, with all below it, may be bound.
type BindRoot struct {
	// Path may begin with $HOME, the user's home directory.
	Path string
	// ReadOnly allows it with :ro only.
	ReadOnly bool
}

// A HostBind is a place in a create request that names a path of the host.
type HostBind struct {
	// Field is the place as users know it, for messages.
	Field string
	// Source is the path, cleaned as the Engine does it, and Target where the container
	// has it.
	Source, Target string
	ReadOnly       bool
	// Relative is true where the source is no absolute path.
	Relative bool
	// MayCreate is true where the Engine makes a directory that is missing.
	MayCreate bool
	// Set puts another path in its stead.
	Set func(source string)
}

// HostBinds lists the paths of the host that a request wants to bind.
func HostBinds(req *container.CreateRequest) []HostBind {
	hc := req.HostConfig
	if hc == nil {
		return nil
	}
	var list []HostBind
	for i, bind := range hc.Binds {
		source, rest, ok := strings.Cut(bind, ":")
		if !ok || !strings.HasPrefix(source, "/") {
			continue
		}
		target, options, _ := strings.Cut(rest, ":")
		list = append(list, HostBind{
			Field: "-v " + bind, Source: path.Clean(source), Target: cleanTarget(target), MayCreate: true,
			ReadOnly: slices.Contains(strings.Split(options, ","), "ro"),
			Set: func(source string) {
				// The staged mount is read-only where it must be. The Engine would mount it
				// once more for "ro", and take nosuid and nodev off by that.
				kept := strings.Split(options, ",")
				kept = slices.DeleteFunc(kept, func(o string) bool { return o == "ro" || o == "" })
				hc.Binds[i] = source + ":" + target
				if len(kept) > 0 {
					hc.Binds[i] += ":" + strings.Join(kept, ",")
				}
			},
		})
	}
	for i := range hc.Mounts {
		m := &hc.Mounts[i]
		if m.Type != mount.TypeBind {
			continue
		}
		list = append(list, HostBind{
			Field: "--mount source=" + m.Source, Source: path.Clean(m.Source), Relative: !strings.HasPrefix(m.Source, "/"), Target: cleanTarget(m.Target), ReadOnly: m.ReadOnly,
			MayCreate: m.BindOptions != nil && m.BindOptions.CreateMountpoint,
			Set: func(source string) {
				m.Source, m.ReadOnly = source, false
				if m.BindOptions != nil {
					options := *m.BindOptions
					options.ReadOnlyNonRecursive, options.ReadOnlyForceRecursive = false, false
					m.BindOptions = &options
				}
			},
		})
	}
	return list
}

// engineSockets are where clients look for the Engine: bound into a container, they
// mean the user's own.
var engineSockets = []string{"/var/run/docker.sock", "/run/docker.sock"}

// IsEngineSocket reports whether a bind means "my Docker": by the usual path, or by
// one of those where the Engine and the server listen.
func IsEngineSocket(source string, sockets ...string) bool {
	return slices.Contains(engineSockets, source) || source != "" && slices.Contains(sockets, source)
}

// neverBound are the host's own insides, whatever a profile says.
var neverBound = []string{"/proc", "/sys", "/dev", "/run"}

// NeverBound reports whether a path without links is one that no profile opens: the
// host's root, its insides, and the server's own directories.
func NeverBound(real string, server []string) bool {
	return real == "/" || slices.ContainsFunc(append(slices.Clone(neverBound), server...), func(dir string) bool {
		return dir != "" && (real == dir || strings.HasPrefix(real, dir+"/"))
	})
}

// RefuseBind is the refusal of a bind; why and what to do instead are written for
// the user.
func RefuseBind(p *Profile, b HostBind, why, instead string) Verdict {
	return refuse("bind-source", fmt.Sprintf("Permission denied: %s: %s (rule bind-source, profile %s). %s", b.Field, why, p.Name, instead))
}

// BindRoots says in words what a profile lets users bind.
func BindRoots(roots []BindRoot) string {
	if len(roots) == 0 {
		return "Use a named volume: -v NAME:/path."
	}
	var words []string
	for _, r := range roots {
		word := r.Path
		if r.ReadOnly {
			word += " (with :ro)"
		}
		words = append(words, word)
	}
	return "Allowed: " + strings.Join(words, ", ") + "; or a named volume: -v NAME:/path."
}

// A BindMap says whose the files of a bind are inside.
type BindMap uint8

// The ways to map owners.
const (
	// MapRoot makes the user's files root's.
	MapRoot BindMap = iota
	// MapUser leaves them the user's.
	MapUser
	// MapContainer makes them the container's user's, who is neither.
	MapContainer
	// MapNone leaves every owner what they are.
	MapNone
)

// IsRoot reports whether a user, written as for docker run --user, is root by its
// name or number.
func IsRoot(user string) bool {
	name, _, _ := strings.Cut(user, ":")
	return name == "root" || strings.Trim(name, "0") == ""
}

// BindsAs decides whether a container that runs as uid may have binds of the host.
func BindsAs(p *Profile, s *Subject, uid uint32) Verdict {
	if uid == 0 && !p.BindsAsRoot {
		return refuse("bind-root", fmt.Sprintf("Permission denied: a container with binds of the host may not run as root here (rule bind-root, profile %s). Run it as yourself: --user %d:%d.", p.Name, s.UID, s.GID))
	}
	return allow("bind-root")
}

// ChooseMap decides whose the files of a container's binds are inside. asked is the
// container's label, user who works in it.
func ChooseMap(p *Profile, asked, user string) (BindMap, Verdict) {
	choice := asked
	if choice == "" {
		choice = "auto"
		if len(p.Map) > 0 {
			choice = p.Map[0]
		}
	} else if !allows(p.Map, choice) {
		return MapRoot, refuse("bind-map", fmt.Sprintf("Permission denied: the label %s=%s is not allowed here (rule bind-map, profile %s). %s", LabelBindMap, asked, p.Name, allowed("Allowed", p.Map)))
	}
	switch {
	case choice == "none":
		return MapNone, allow("bind-map")
	case choice == "root", choice == "auto" && IsRoot(user):
		return MapRoot, allow("bind-map")
	case choice == "user":
		return MapUser, allow("bind-map")
	}
	return MapContainer, allow("bind-map")
}

// HardenBinds takes from a container with a writable bind the making of device
// nodes: on the host's disk they would be the disk.
func HardenBinds(req *container.CreateRequest) {
	hc := req.HostConfig
	hc.CapAdd = slices.DeleteFunc(slices.Clone(hc.CapAdd), func(c string) bool { return capability(c) == "MKNOD" })
	if !slices.ContainsFunc(hc.CapDrop, func(c string) bool { return capability(c) == "MKNOD" || capability(c) == "ALL" }) {
		hc.CapDrop = append(hc.CapDrop, "MKNOD")
	}
}

// ChownWarning is what the maker of a container reads where a bind is in the place of
// a volume that the image declares: databases give its files to a user of theirs,
// which the host's disk does not take.
func ChownWarning(b HostBind) string {
	return fmt.Sprintf("%s: files there can belong to you alone. An image that gives them to another user, as databases do, fails with \"Value too large for defined data type\": use a named volume then, -v NAME:%s.", b.Field, b.Target)
}
