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
	// UID and GID are the owner's on disk, ToUID and ToGID what the container sees.
	UID, GID, ToUID, ToGID uint32
}

// namespaces keeps a user namespace open for each map: a mount that is mapped needs
// one, and nothing else does.
type namespaces struct {
	mu   sync.Mutex
	open map[Map]*os.File
}

// of returns the namespace of a map.
func (n *namespaces) of(m Map) (*os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if f := n.open[m]; f != nil {
		return f, nil
	}
	f, err := newNamespace(m)
	if err != nil {
		return nil, fmt.Errorf("user namespace that maps uid %d to %d: %w", m.UID, m.ToUID, err)
	}
	if n.open == nil {
		n.open = make(map[Map]*os.File)
	}
	n.open[m] = f
	return f, nil
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
