//! `links`: the names that procedures type, as links to this program.

use crate::{error::CliError, names};
use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

/// Makes the missing links in `dir` to `program` and answers one line for each name.
///
/// Nothing is made when any name is taken by something that is not ours: a link counts as ours when it leads to this
/// program, or to any other file called like it.
pub(crate) fn make(dir: &Path, program: &Path, dry_run: bool) -> Result<Vec<String>, CliError> {
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| CliError::File { path, source }
    };
    let mut plan: Vec<(PathBuf, Found)> = Vec::new();
    for name in names::ALL.iter().filter_map(|n| n.link) {
        let path = dir.join(name);
        let found = look(&path, program).map_err(file(&path))?;
        plan.push((path, found));
    }
    let foreign: Vec<String> = plan
        .iter()
        .filter(|(_, f)| *f == Found::Foreign)
        .map(|(p, _)| p.display().to_string())
        .collect();
    if !foreign.is_empty() {
        return Err(Box::new(control::Failure::new(
            control::Code::Refused,
            format!("not ours, not replaced: {}", foreign.join(", ")),
        ))
        .into());
    }
    if !dry_run {
        fs::create_dir_all(dir).map_err(file(dir))?;
    }
    let mut lines = Vec::new();
    for (path, found) in plan {
        if found != Found::Right && !dry_run {
            if found == Found::Older {
                fs::remove_file(&path).map_err(file(&path))?;
            }
            symlink(program, &path).map_err(file(&path))?;
        }
        let so = match (found, dry_run) {
            (Found::Right, _) => " (already so)",
            (_, true) => " (would be made)",
            (_, false) => "",
        };
        lines.push(format!("{} -> {}{so}", path.display(), program.display()));
    }
    Ok(lines)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Right,
    /// A link to another place of the same program.
    Older,
    Foreign,
}

fn look(path: &Path, program: &Path) -> io::Result<Found> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Found::Nothing),
        Err(e) => Err(e),
        Ok(m) if !m.is_symlink() => Ok(Found::Foreign),
        Ok(_) => {
            let to = fs::read_link(path)?;
            Ok(if to == program {
                Found::Right
            } else if to.file_name() == program.file_name() {
                Found::Older
            } else {
                Found::Foreign
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_once_and_never_over_what_is_not_ours() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("bin");
        let program = Path::new("/opt/backstay/bin/backstay");
        let planned = make(&dir, program, true).unwrap();
        assert!(planned[0].ends_with("(would be made)") && !dir.exists());
        assert_eq!(make(&dir, program, false).unwrap().len(), 12);
        assert_eq!(fs::read_link(dir.join("scrt_ra")).unwrap(), program);
        assert!(
            make(&dir, program, false)
                .unwrap()
                .iter()
                .all(|l| l.ends_with("(already so)"))
        );
        // An upgrade to another place moves them.
        let newer = Path::new("/usr/bin/backstay");
        make(&dir, newer, false).unwrap();
        assert_eq!(fs::read_link(dir.join("rtmnt")).unwrap(), newer);
        // One foreign file: nothing at all is changed.
        fs::remove_file(dir.join("rtdr")).unwrap();
        fs::write(dir.join("rtdr"), "#!/bin/sh\n").unwrap();
        let error = make(&dir, program, false).unwrap_err().into_failure();
        assert_eq!(error.code, control::Code::Refused);
        assert!(error.error.contains("rtdr"), "{}", error.error);
        assert_eq!(fs::read_link(dir.join("rtmnt")).unwrap(), newer);
    }
}
