package policy

import (
	"path"
	"slices"
	"strings"
)

// A Profile says what a user's containers may ask of the host. The fields are named
// as docker run spells them; what a list does not name is refused. The zero Profile
// allows what touches nothing but the container.
type Profile struct {
	// Name is how configuration, messages and audit records call it.
	Name string
	// OwnershipOnly leaves out every rule about the host.
	OwnershipOnly bool

	// Privileged allows --privileged, for exec too.
	Privileged bool
	// CapAdd are the capabilities, without CAP_, that may be asked for.
	CapAdd []string
	// CapDrop are taken from every container; ALL leaves it those of CapAdd that it
	// asks for.
	CapDrop []string
	// SecurityOpt are the values of --security-opt that may be asked for.
	SecurityOpt []string
	// NoNewPrivileges is set on every container.
	NoNewPrivileges bool
	// Network, PID, IPC, UTS, Userns and Cgroupns are the namespaces of the host that
	// may be asked for: host, or nothing.
	Network, PID, IPC, UTS, Userns, Cgroupns []string
	// Devices are paths, with patterns as path.Match has them, that may be given to a
	// container.
	Devices []string
	// DeviceCgroupRules are the rules that may be asked for, word by word.
	DeviceCgroupRules []string
	// GPUs allows --gpus.
	GPUs bool
	// Runtime are runtimes beside the Engine's default.
	Runtime []string
	// Sysctl are kernel parameters of the container's own namespaces.
	Sysctl []string
	// Annotation are keys of annotations, which runtimes act on.
	Annotation []string
	// Ulimit are the limits that may be asked for.
	Ulimit []string
	// LogDriver are logging drivers beside the Engine's default.
	LogDriver []string
	// StorageOpt are options of the storage driver.
	StorageOpt []string
	// MinPort is the lowest port of the host that may be published; 0 means 1024.
	MinPort int
	// PublishIP are the addresses that ports may be published on; none means any.
	PublishIP []string
	// Restart are the restart policies that may be asked for.
	Restart []string
	// GroupAdd are additional groups; any stands for all.
	GroupAdd []string
	// Binds are the paths of the host that may be bound.
	Binds []BindRoot
	// BindsAsRoot allows containers that run as root to have binds of the host.
	BindsAsRoot bool
	// BindsUnmapped allows binds of file systems that cannot map owners, for containers
	// that are their user and nobody else.
	BindsUnmapped bool
	// Map are the ways in which owners of bound files may be mapped; the first is what
	// holds where a container says nothing.
	Map []string
	// VolumeOpt allows drivers of volumes and networks, and their options.
	VolumeOpt bool
	// FailClosed denies what the daemon's switches would let through.
	FailClosed bool
}

// volumeOptions reports whether drivers of volumes and networks, and their options,
// are free.
func (p *Profile) volumeOptions() bool { return p.OwnershipOnly || p.VolumeOpt }

// minPort is the lowest port of the host that may be published.
func (p *Profile) minPort() int {
	if p.MinPort == 0 {
		return 1024
	}
	return p.MinPort
}

// allows reports whether a list names a value.
func allows(list []string, value string) bool { return slices.Contains(list, value) }

// allowsPath reports whether one of a list's patterns matches a cleaned path.
func allowsPath(list []string, value string) bool {
	if path.Clean(value) != value {
		return false
	}
	return slices.ContainsFunc(list, func(pattern string) bool {
		ok, err := path.Match(pattern, value)
		return ok && err == nil
	})
}

// capability is the name of a capability as profiles spell it.
func capability(name string) string {
	return strings.TrimPrefix(strings.ToUpper(name), "CAP_")
}

// defaultCapabilities are those that the Engine gives every container, from its
// source (oci/caps/defaults.go): asking for them asks for nothing.
var defaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
	"NET_BIND_SERVICE", "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}
