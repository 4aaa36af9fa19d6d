//go:build !cgo

package users

// Accounts of LDAP and SSSD are only visible through the C library's NSS.
var _ = ds01_proxy_must_be_built_with_CGO_ENABLED_1_and_a_C_compiler
