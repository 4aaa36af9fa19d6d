package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// An Account is who a user is on the host: one uid, and the groups that its processes
// have there, the primary one first.
type Account struct {
	UID    uint32
	Groups []uint32
}

// user is the account as docker run --user spells it.
func (a Account) user() string {
	if len(a.Groups) == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d", a.UID, a.Groups[0])
}

// is reports whether a user, written as for docker run --user, is the account and
// nothing else. Without a group, the image would say which groups it has.
func (a Account) is(user string) bool {
	return slices.ContainsFunc(a.Groups, func(gid uint32) bool { return user == fmt.Sprintf("%d:%d", a.UID, gid) })
}

// inGroup reports whether a group, by its number, is one of the account's.
func (a Account) inGroup(group string) bool {
	gid, err := strconv.ParseUint(group, 10, 32)
	return err == nil && slices.Contains(a.Groups, uint32(gid))
}

// notOneself says what makes a container somebody else than the account; "" where
// nothing does, and HardenOneself keeps it so.
func notOneself(a Account, req *container.CreateRequest) string {
	switch hc := req.HostConfig; {
	case !a.is(req.User):
		return "run it as yourself: --user " + a.user()
	case hc == nil:
		return ""
	case len(hc.CapAdd) > 0:
		return "leave --cap-add out"
	case slices.ContainsFunc(hc.GroupAdd, func(g string) bool { return !a.inGroup(g) }):
		return "leave --group-add out but for groups of yours, by their numbers"
	case slices.ContainsFunc(hc.SecurityOpt, func(o string) bool { return strings.HasPrefix(o, "no-new-privileges") && strings.HasSuffix(o, "false") }):
		return "leave --security-opt no-new-privileges=false out"
	case hc.Privileged:
		return "leave --privileged out"
	}
	return ""
}

// HardenOneself takes from a container that runs as its user every way to become
// somebody else.
func HardenOneself(req *container.CreateRequest) {
	hc := req.HostConfig
	hc.CapAdd, hc.CapDrop = nil, []string{"ALL"}
	hc.SecurityOpt = slices.DeleteFunc(slices.Clone(hc.SecurityOpt), func(o string) bool { return strings.HasPrefix(o, "no-new-privileges") })
	hc.SecurityOpt = append(hc.SecurityOpt, "no-new-privileges")
}

// ContainerRoot decides about a container on an Engine that maps no users: root inside
// is root of the host, for whoever hands it an open directory of the host through a
// socket, and any other uid is that user of the host. harden is true where the
// container must be held to what it was let through for.
func ContainerRoot(p *Profile, a Account, req *container.CreateRequest, sw Switch) (v Verdict, harden bool) {
	const rule = "container-root"
	why := notOneself(a, req)
	switch {
	case p.OwnershipOnly:
		return allow("open-profile"), false
	case sw == SwitchAllow && why == "":
		return allow(rule), false
	case sw == SwitchAllow:
		return failOpen(rule, "the Engine maps no users, so root in this container is root of the host to its user's other processes (userns-remap)"), false
	case why != "":
		return refuse(rule, fmt.Sprintf("Permission denied: root in a container would be root of this host (rule container-root, profile %s): %s.", p.Name, why)), false
	}
	return allow(rule), true
}

// RootSteps decides about a build on an Engine that maps no users: its steps run as root.
func RootSteps(p *Profile, sw Switch) Verdict {
	switch {
	case p.OwnershipOnly:
		return allow("open-profile")
	case sw == SwitchAllow:
		return failOpen("container-root", "the Engine maps no users, so the steps of this build are root of the host to their user's other processes (userns-remap)")
	}
	return refuse("container-root", fmt.Sprintf("Permission denied: the steps of a build run as root, and root in a container would be root of this host (rule container-root, profile %s). Build elsewhere and load or pull the image.", p.Name))
}

// UnmappedBind decides about a bind whose file system cannot map owners. Only a
// container that is its user and nobody else may have it, and imageDir, the working
// directory of the image, matters since the Engine makes one that is not there as root.
func UnmappedBind(p *Profile, a Account, req *container.CreateRequest, imageDir string, b HostBind) Verdict {
	const cannot = "its file system (NFS, for one) cannot map owners, so only a container that is yourself may have it"
	instead := "It then gets no capabilities and no-new-privileges. Or copy what you need to a directory of yours, or use a named volume: -v NAME:/path."
	if !p.BindsUnmapped {
		return RefuseBind(p, b, "its file system (NFS, for one) cannot map owners", "Copy what you need to a directory of yours, or use a named volume: -v NAME:/path.")
	}
	if why := notOneself(a, req); why != "" {
		return RefuseBind(p, b, cannot, strings.ToUpper(why[:1])+why[1:]+". "+instead)
	}
	dir := req.WorkingDir
	if dir == "" {
		dir = imageDir
	}
	if below(dir, b.Target) {
		return RefuseBind(p, b, cannot+", and the working directory "+dir+" below it would be made as root", "Use -w "+b.Target+".")
	}
	targets := mountTargets(req)
	for _, d := range req.HostConfig.Devices {
		targets = append(targets, d.PathInContainer)
	}
	for _, target := range targets {
		if below(target, b.Target) {
			return RefuseBind(p, b, cannot+", and a place for "+target+" below it would be made as root", "Mount "+target+" elsewhere.")
		}
	}
	return allow("bind-unmapped")
}

// below reports whether a path of a container lies below another, and is not it.
func below(dir, other string) bool {
	dir, other = cleanTarget(dir), cleanTarget(other)
	return dir != other && strings.HasPrefix(dir, strings.TrimSuffix(other, "/")+"/")
}

// mountTargets are the paths of a container that something is mounted at.
func mountTargets(req *container.CreateRequest) []string {
	var list []string
	for _, b := range req.HostConfig.Binds {
		if _, rest, ok := strings.Cut(b, ":"); ok {
			target, _, _ := strings.Cut(rest, ":")
			list = append(list, target)
		} else {
			list = append(list, b)
		}
	}
	for _, m := range req.HostConfig.Mounts {
		list = append(list, m.Target)
	}
	return append(list, sortedKeys(req.HostConfig.Tmpfs)...)
}

// ExecAs decides as whom a process may be started in a container that has binds of the
// host, or that must be its user. The container's own user is "".
func ExecAs(p *Profile, a Account, e *container.ExecOptions, oneself, binds bool) Verdict {
	uid, _, _ := strings.Cut(e.User, ":")
	number, err := strconv.ParseUint(uid, 10, 31)
	switch {
	case p.OwnershipOnly:
	case !PlainUser(p, e.User).Allowed():
		return PlainUser(p, e.User)
	case e.User == "":
	case oneself && !a.is(e.User):
		return refuse("exec-user", fmt.Sprintf("Permission denied: this container may have no other user than yours (rule exec-user, profile %s). Leave --user out, or use --user %s.", p.Name, a.user()))
	case binds && !p.BindsAsRoot && (err != nil || number == 0):
		return refuse("exec-user", fmt.Sprintf("Permission denied: a container with binds of the host may not run as root here, nor as a user by name (rule exec-user, profile %s). Leave --user out, or use --user %s.", p.Name, a.user()))
	}
	return allow("exec-user")
}

// CopyUnmapped decides about copying into and out of a container with a bind whose
// owners are not mapped.
func CopyUnmapped(p *Profile) Verdict {
	return refuse("copy-unmapped", fmt.Sprintf("Permission denied: this container has a bind whose file system cannot map owners, and the Engine copies as root (rule copy-unmapped, profile %s). Copy by the bind itself, or with docker exec and tar.", p.Name))
}

// PlainUser refuses users whose numbers the Engine reads otherwise than they are written.
func PlainUser(p *Profile, user string) Verdict {
	if strings.Contains(user, "+") && !p.OwnershipOnly {
		return refuseByRule(p, "user", "--user "+user+"; Write numbers without a sign.")
	}
	return allow("user")
}
