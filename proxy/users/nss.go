// Package users knows who is served: the accounts that NSS has, as the C library
// sees them, so that LDAP and SSSD work. It needs cgo.
package users

/*
#include <errno.h>
#include <pwd.h>
#include <stdlib.h>
*/
import "C"

import (
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"unsafe"
)

// An Account is an entry of the passwd database.
type Account struct {
	Name  string
	UID   uint32
	GID   uint32
	Home  string
	Shell string
}

// ErrUnknown means that the passwd database has no such account.
var ErrUnknown = errors.New("no such user on this server")

// NSS looks accounts up through the C library.
type NSS struct {
	// enumerating serialises getpwent(3), which keeps its place in one variable of
	// the process.
	enumerating sync.Mutex
}

// All lists the accounts that can be enumerated. Directory services often
// enumerate nothing; their users are found by ByUID.
func (n *NSS) All() ([]Account, error) {
	n.enumerating.Lock()
	defer n.enumerating.Unlock()
	C.setpwent()
	defer C.endpwent()
	var all []Account
	for {
		pw, err := C.getpwent()
		if pw == nil {
			// At the end some services leave ENOENT behind.
			if err != nil && !errors.Is(err, syscall.ENOENT) {
				return all, fmt.Errorf("list accounts: %w", err)
			}
			return all, nil
		}
		all = append(all, Account{
			Name: C.GoString(pw.pw_name), UID: uint32(pw.pw_uid), GID: uint32(pw.pw_gid),
			Home: C.GoString(pw.pw_dir), Shell: C.GoString(pw.pw_shell),
		})
	}
}

// ByUID looks one account up by its uid.
func (n *NSS) ByUID(uid uint32) (Account, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	return n.complete(u, err)
}

// ByName looks one account up by its name.
func (n *NSS) ByName(name string) (Account, error) {
	u, err := user.Lookup(name)
	return n.complete(u, err)
}

func (n *NSS) complete(u *user.User, err error) (Account, error) {
	var (
		noID   user.UnknownUserIdError
		noName user.UnknownUserError
	)
	switch {
	case errors.As(err, &noID), errors.As(err, &noName):
		return Account{}, ErrUnknown
	case err != nil:
		return Account{}, fmt.Errorf("look up account: %w", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return Account{}, fmt.Errorf("uid of %s: %w", u.Username, err)
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return Account{}, fmt.Errorf("gid of %s: %w", u.Username, err)
	}
	return Account{Name: u.Username, UID: uint32(uid), GID: uint32(gid), Home: u.HomeDir, Shell: shellOf(u.Username)}, nil
}

// shellOf returns the login shell, which os/user leaves out; "" where unknown.
func shellOf(name string) string {
	cname := C.CString(name)
	defer C.free(unsafe.Pointer(cname))
	var pw C.struct_passwd
	var found *C.struct_passwd
	for size := 1 << 12; size <= 1<<20; size *= 2 {
		buf := C.malloc(C.size_t(size))
		rc := C.getpwnam_r(cname, &pw, (*C.char)(buf), C.size_t(size), &found)
		if rc == C.ERANGE {
			C.free(buf)
			continue
		}
		shell := ""
		if rc == 0 && found != nil {
			shell = C.GoString(pw.pw_shell)
		}
		C.free(buf)
		return shell
	}
	return ""
}

// InAnyGroup reports whether the account belongs to one of the named groups.
// Names of groups that do not exist match nobody.
func (n *NSS) InAnyGroup(a Account, groups []string) (bool, error) {
	if len(groups) == 0 {
		return false, nil
	}
	u := &user.User{Username: a.Name, Gid: strconv.FormatUint(uint64(a.GID), 10)}
	ids, err := u.GroupIds()
	if err != nil {
		return false, fmt.Errorf("groups of %s: %w", a.Name, err)
	}
	for _, name := range groups {
		g, err := user.LookupGroup(name)
		var none user.UnknownGroupError
		if errors.As(err, &none) {
			continue
		}
		if err != nil {
			return false, fmt.Errorf("look up group %s: %w", name, err)
		}
		if slices.Contains(ids, g.Gid) {
			return true, nil
		}
	}
	return false, nil
}
