package binds

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
)

// A Map says whose files on disk are whose in the container. Every other owner's
// are nobody's there.
type Map struct {
	// UID and GID are the owner's on disk, ToUID and ToGID the container's user as the
	// kernel knows them: with an Engine that maps users, not what the container sees.
	UID, GID, ToUID, ToGID uint32
}

// namespaces keeps a user namespace open for each map: a mount that is mapped needs
// one, and nothing else does.
type namespaces struct {
	mu   sync.Mutex
	open map[Map]*os.File
}

// maxNamespaces is how many are kept: users choose whom their containers run as.
const maxNamespaces = 128

// use calls f with the namespace of a map, which stays open for that long.
func (n *namespaces) use(m Map, f func(ns *os.File) error) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	ns := n.open[m]
	if ns == nil {
		var err error
		if ns, err = newNamespace(m); err != nil {
			return fmt.Errorf("user namespace that maps uid %d to %d: %w", m.UID, m.ToUID, err)
		}
		if len(n.open) >= maxNamespaces {
			// A mount that has one keeps it.
			for _, old := range n.open {
				_ = old.Close()
			}
			n.open = nil
		}
		if n.open == nil {
			n.open = make(map[Map]*os.File)
		}
		n.open[m] = ns
	}
	return f(ns)
}

// PauseCommand is the subcommand that a process runs whose namespace is wanted: it
// waits for the end of its standard input.
const PauseCommand = "hold-namespace"

// newNamespace makes a user namespace by a process that ends when the namespace is
// open.
func newNamespace(m Map) (*os.File, error) {
	cmd := exec.Command("/proc/self/exe", PauseCommand)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: int(m.UID), HostID: int(m.ToUID), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: int(m.GID), HostID: int(m.ToGID), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	_ = in.Close()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	return f, err
}
